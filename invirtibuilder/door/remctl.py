"""What remctld and remctl-shell start: all verbs of `build`, for the principal in REMOTE_USER.

The caller is whoever started this program says, so it must be neither setuid nor reachable in
another way. It starts at every call: nothing heavy is imported here, dataclasses included.
Exit codes are those of `errors.Exit`, never 1 or 255, which are remctl's own.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence

from invirtibuilder import entries, model
from invirtibuilder.door import administer, view, watch
from invirtibuilder.door import submit as daemon
from invirtibuilder.door.call import Call, say
from invirtibuilder.door.verb import Verb, formed, malformed
from invirtibuilder.errors import (
    Denied,
    Exit,
    Fault,
    Malformed,
    NotFound,
    Reason,
    Refused,
    UsageFault,
)
from invirtibuilder.joblog import harmless

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing, too, takes its time to import
    from typing import NoReturn


def _submission(call: Call, args: Sequence[str]) -> Sequence[str]:
    """POCKET PACKAGE COMMIT, well-formed and allowed. Raises Refused, Denied, Unavailable."""
    formed("submit", args)
    call.table.require(call.principal, args[0], "submit")
    return args


def _submit(call: Call, args: Sequence[str]) -> int:
    words = _submission(call, args)
    entry = entries.new("submit", words, principal=call.principal, via=call.via, addr=call.addr)
    answer = daemon.submit(call.table.queue, call.table.socket, entry)
    print((answer or {}).get("job") or entry["id"], flush=True)
    say(daemon.said(answer, words[1]))
    return Exit.OK


def _promote(call: Call, args: Sequence[str]) -> int:
    return _act(call, "promote", args, "promote")


def _rollback(call: Call, args: Sequence[str]) -> int:
    # Who may submit to a backtracking pocket may also roll it back.
    rights = call.table.rights(call.principal, args[0])
    back = call.table.pockets.get(args[0], {}).get("allow_backtracking")
    return _act(call, "rollback", args, "submit" if back and "submit" in rights else "rollback")


def _act(call: Call, action: str, args: Sequence[str], right: str) -> int:
    """Queue a promotion or a rollback unless the daemon refuses it."""
    formed(action, args)
    entry = entries.new(action, args, principal=call.principal, via=call.via, addr=call.addr)
    call.table.require(call.principal, entries.pocket(action, args), right)
    answer = daemon.submit(call.table.queue, call.table.socket, entry)
    print(entry["id"], flush=True)
    if answer is None:
        say("accepted, but not checked yet: the daemon does not answer")
    else:
        for each in answer["packages"]:
            say(f"accepted: {each['package']}: {each['how']}{daemon.held(answer)}")
    if action == "rollback":
        say(entries.downgrade(args[0]))
    return Exit.OK


def _check(call: Call, args: Sequence[str]) -> int:
    words = _submission(call, args)
    answer = daemon.check(call.table.socket, words, call.principal)
    text = f"{words[1]} {answer['version']} ({answer['commit']}) may go to {words[0]}"
    print(text + daemon.held(answer))
    return Exit.OK


def _status(call: Call, args: Sequence[str]) -> int:
    if args:
        if call.untaken.is_waiting(args[0]):
            print(f"job        {args[0]}\nstate      not taken up yet")
        elif why := call.untaken.why_set_aside(args[0]):
            raise Denied(why, code="set-aside")
        else:
            print(call.views.get(args[0]).text())
        return Exit.OK
    newest = []
    for job in call.views.newest():
        newest.append(job)
        if len(newest) == view.RECENT:
            break
    _list(newest[::-1], "no jobs")
    return Exit.OK


def _list(jobs: Sequence[view.View], none: str) -> None:
    print(view.table([view.HEADER, *(job.row for job in jobs)]) if jobs else none)


def _queue(call: Call, args: Sequence[str]) -> int:
    order = view.Order(call.table.queue_view, call.table.socket)
    administers = call.table.administers(call.principal)
    for scope, why in order.paused.items():
        if scope == entries.WHOLE or administers or call.table.readable(call.principal, scope):
            print(model.printable(why))
    print(order.text(call.views.unfinished()))
    if waiting := call.untaken.waiting():
        print(f"yours, not taken up yet: {', '.join(waiting)}")
    return Exit.OK


def _of_job(call: Call, name: str) -> view.View:
    """A job that the caller may cancel or retry."""
    job = call.views.get(name)
    of_the_site = job.request["action"] in entries.OF_THE_SITE
    allowed = of_the_site and call.table.administers(call.principal)
    if not (allowed or job.asked_by(call.principal)):
        call.table.require(call.principal, job.pocket, "cancel")
    return job


def _cancel(call: Call, args: Sequence[str]) -> int:
    if call.untaken.is_waiting(name := args[0]):
        say(f"job {name} is not taken up yet")
    elif (job := _of_job(call, name)).final:
        say(f"job {job.id} is {job.state['state']} already")
        return Exit.OK
    else:
        name = job.name
    call.taken_up(call.put("cancel", [name]))
    print(f"asked to cancel job {name}")
    return Exit.OK


def _retry(call: Call, args: Sequence[str]) -> int:
    job = _of_job(call, args[0])
    if not job.final:
        raise Malformed(f"job {job.id} is not over: nothing to retry", code="not-over")
    name = call.put("retry", [job.name])
    call.taken_up(name)
    print(name)
    return Exit.OK


def _pockets(call: Call, args: Sequence[str]) -> int:
    rows = [("POCKET", "SUITE", "BACKTRACKING", "YOU MAY", "DESCRIPTION")]
    for name in call.table.own(call.principal):
        pocket = call.table.pockets[name]
        may = "stale" if call.table.stale(name) else _may(call, name)
        back = "yes" if pocket["allow_backtracking"] else "no"
        rows.append((name, pocket["suite"], back, may, model.printable(pocket["description"])))
    print(view.table(rows) if len(rows) > 1 else "no pockets")
    return Exit.OK


def _may(call: Call, pocket: str) -> str:
    return ",".join(call.table.rights(call.principal, pocket))


def _packages(call: Call, args: Sequence[str]) -> int:
    if not call.table.own(call.principal):
        raise Denied(f"{model.printable(call.principal)} has no pocket here", code="no-rights")
    print("\n".join(call.table.packages) or "no packages")
    return Exit.OK


def _acl(call: Call, args: Sequence[str]) -> int:
    if not args:
        for name in call.table.own(call.principal):
            print(f"{name}: {_may(call, name)}")
        return Exit.OK
    call.table.require(call.principal, args[0])
    for action, who in sorted(call.table.pockets[args[0]]["actions"].items()):
        print(f"{action}: {', '.join(map(model.printable, who)) or 'nobody'}")
    return Exit.OK


def _sources(call: Call, args: Sequence[str]) -> int:
    """POCKET, POCKET at X, POCKET preferences, POCKET downgrade; also as the site's options."""
    which = args[1].removeprefix("--") if len(args) > 1 else "sources"
    if which not in SOURCES or len(args) != (3 if which == "at" else 1 + (len(args) > 1)):
        raise UsageFault("usage: sources POCKET [preferences | downgrade | at COMMIT|DATE]")
    call.table.require(call.principal, args[0])
    if len(args) > 1:
        at = args[2] if which == "at" else ""
        if which == "at":
            model.moment(at)
        question = {"verb": "sources", "pocket": args[0], "at": at, "principal": call.principal}
        answer = daemon.asked(call.table.socket, question)
        text = answer["sources" if which == "at" else which]
    else:
        text = call.table.pockets[args[0]].get("sources")
    if not text:
        raise NotFound(
            f"pocket {args[0]} has no sources stanza yet",
            hint="the daemon writes it with the pocket's first publication",
            code="no-sources",
        )
    print(str(text).rstrip("\n"))
    return Exit.OK


def _diff(call: Call, args: Sequence[str]) -> int:
    reasons: list[Reason] = []
    pockets = []
    for word in args:
        pocket, at, moment = word.partition("@")
        # A commit or a date may stand alone.
        if at or pocket in call.table.pockets or malformed(model.moment, pocket):
            pockets.append(pocket)
            reasons += malformed(model.pocket_name, pocket)
            reasons += malformed(model.moment, moment) if at else []
    if reasons:
        raise Refused(reasons)
    # Before the daemon is asked, which tells pockets that are not there from others.
    for pocket in pockets:
        call.table.require(call.principal, pocket)
    question = {"verb": "diff", "a": args[0], "b": args[1], "principal": call.principal}
    answer = daemon.asked(call.table.socket, question)
    for pocket in answer["pockets"]:
        call.table.require(call.principal, pocket)
    print(harmless(str(answer["text"])))
    return Exit.OK


SOURCES = ("sources", "preferences", "downgrade", "at")


def _help(call: Call, args: Sequence[str]) -> int:
    if args:
        verb = VERBS.get(args[0])
        if verb is None:
            raise UsageFault(f"no verb {model.printable(args[0])[:80]!r}; {KNOWN}")
        print(f"build {args[0]} {verb.arguments}".rstrip())
        print(f"    {verb.about}")
        print("".join(f"    {line}\n" for line in verb.more.splitlines()), end="")
        print(CODES)
        return Exit.OK
    own = ", ".join(call.table.own(call.principal)) or "none"
    shown = {f"{name} {verb.arguments}".rstrip(): verb.about for name, verb in VERBS.items()}
    width = max(map(len, shown))
    for usage, about in shown.items():
        print(f"build {usage:<{width}} {about}")
    print(f"You are {model.printable(call.principal)}. Your pockets: {own}")
    return Exit.OK


CODES = """\
Exit codes: 0 done, 3 refused, 4 failed, 5 cancelled, 6 fsck found a difference, 64 usage,
65 malformed, 66 no such thing, 69 the daemon or an answer is missing, 70 a defect, 71 the machine,
77 not permitted; 1 and 255 are remctl's own."""
KEEP = "A connection that is lost may have queued it all the same: look with `build status`."
ADMINISTRATORS = "For the site's administrators."
VERBS = {
    "submit": Verb(
        _submit,
        "POCKET PACKAGE COMMIT",
        "queue a commit for a pocket; prints the job's id",
        f"COMMIT is an id, a tag or a branch that has been pushed. Keep the id.\n{KEEP}",
    ),
    "promote": Verb(
        _promote,
        "[--despite-dependencies] FROM TO PACKAGE...",
        "bring packages from one pocket to another; prints the job's id",
        "All of them in one publication, or none: the very files, or built again where those\n"
        "cannot be used. Needs the right `promote` in TO.\n"
        "With --despite-dependencies also when one would no longer be met; that is recorded.\n"
        f"{KEEP}",
    ),
    "rollback": Verb(
        _rollback,
        "POCKET COMMIT|DATE [PACKAGE...]",
        "put a pocket, or packages of it, back to what they were; prints the job's id",
        "COMMIT is one of the superproject, DATE is in UTC. It is a new publication; clients go\n"
        f"back to lower versions with what `sources POCKET --downgrade` prints.\n{KEEP}",
    ),
    "check": Verb(_check, "POCKET PACKAGE COMMIT", "say whether a submission would be admitted"),
    "status": Verb(_status, "[JOB]", "show a job, or the latest ones"),
    "log": Verb(
        watch.log,
        "JOB [follow]",
        "print a job's log; with `follow` until it ends",
        "JOB is an id or a part of one.",
    ),
    "queue": Verb(
        _queue,
        "",
        "show what runs, and what waits in the order in which it will be taken",
    ),
    "cancel": Verb(_cancel, "JOB", "stop a job: an own one, or with the right to cancel"),
    "retry": Verb(_retry, "JOB", "submit again what a finished job was asked for", KEEP),
    "pause": Verb(
        administer.pause,
        "[POCKET] [REASON]",
        "let no job of a pocket, or none at all, start anything new; what runs ends",
        "Needs the right `cancel`. Without POCKET, or with `*` for it, it is the whole queue: for\n"
        "the site's administrators, who may pause any pocket, too. What is submitted is accepted\n"
        "and waits; `queue` tells why.",
    ),
    "resume": Verb(
        administer.resume,
        "[POCKET]",
        "end a pause of a pocket, or that of the whole queue",
        "For whoever may pause it.",
    ),
    "pockets": Verb(_pockets, "", "list your pockets"),
    "packages": Verb(_packages, "", "list the packages"),
    "acl": Verb(_acl, "[POCKET]", "say what you may do, or who may do what in a pocket"),
    "sources": Verb(
        _sources,
        "POCKET [WHICH] [COMMIT|DATE]",
        "print a pocket's stanza for /etc/apt/sources.list.d",
        "WHICH is `preferences` for the stanza that puts the pocket above the mirror, `downgrade`\n"
        "for the one that makes APT go back to lower versions, or `at` with a commit of the\n"
        "superproject or a date (UTC), such as 2026-01-31T12:00, for the pocket as it was then.",
    ),
    "diff": Verb(
        _diff,
        "A B",
        "show what differs between two pockets, or a pocket then and now",
        "A and B are POCKET, POCKET@COMMIT, POCKET@DATE, or a superproject COMMIT; a DATE alone\n"
        "is of the other's pocket. Of each package 20 commits are shown that came, or went.",
    ),
    "fsck": Verb(
        administer.fsck,
        "[--level=c] [--full] [--repair] [--wait] [POCKET...]",
        "prove that git, the archive and the records agree; prints the job's id",
        f"{ADMINISTRATORS} All pockets, unless some are named. --wait prints the log and ends\n"
        "with 6 when they differ. --level=c makes each source anew, --full reads every file\n"
        "again, --repair mends what is safe.",
    ),
    "gc": Verb(
        administer.collect,
        "[--dry-run] [--wait]",
        "remove what is no longer kept, and log what and why; prints the job's id",
        f"{ADMINISTRATORS} --dry-run only says it.",
    ),
    "rebuild-state": Verb(
        administer.rebuild,
        "[--wait]",
        "make what was lost anew from git; prints the job's id",
        f"{ADMINISTRATORS} Jobs that published, databases, publications; then as fsck --repair.",
    ),
    "help": Verb(_help, "[VERB]", "this list, or more about a verb"),
}
KNOWN = f"one of {', '.join(VERBS)}"


def run(file: str, argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """One call with the words after the command. Raises Fault."""
    call = Call(file, environment)
    words = list(argv)
    # `remctl HOST help` asks with help=help or summary=summary, whatever a verb is called.
    if environment.get("REMCTL_COMMAND") == "summary":
        return _help(call, [])
    if environment.get("REMCTL_COMMAND") == "help":
        return _help(call, words[1:2])
    verb = VERBS.get(words[0]) if words else None
    if verb is None:
        what = f"no verb {model.printable(words[0])[:80]!r}" if words else "no verb"
        raise UsageFault(f"{what}; {KNOWN}")
    if not verb.least <= len(words) - 1 <= verb.most:
        raise UsageFault(f"usage: build {words[0]} {verb.arguments}".rstrip())
    return verb.run(call, words[1:])


def start(file: str) -> NoReturn:
    """The program; `file` is SITE/run/door.json. It ends at once: Python's own end, of all its
    modules, takes as long as half of a call."""
    gc.enable()
    code = main(file)
    try:
        sys.stdout.flush()
    except OSError:
        pass
    os._exit(code)


def main(file: str) -> int:
    """One call of the program, up to its exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = run(file, sys.argv[1:], os.environ)
        sys.stdout.flush()
        return code
    except Fault as fault:
        what = "refused" if isinstance(fault, Refused) else "error"
        for reason in fault.reasons:
            say(f"{what}: {harmless(str(reason))}")
        return fault.exit
    except BrokenPipeError:
        # Nobody is there to be told; nor may Python try to flush at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except OSError as error:
        say(f"error: {model.printable(str(error))}")
        return Exit.MACHINE
    except Exception:
        # A defect of ours; Python's own exit code for it would be remctl's.
        sys.excepthook(*sys.exc_info())
        return Exit.SOFTWARE
