/* A mail server's own sendmail, as far as the system's rules for it go: setuid root, it delivers to the
 * recipient's mailbox and keeps a copy in the spool as the mail server's account. Like exim it needs
 * the rights of each of CAP_SETUID, CAP_SETGID, CAP_DAC_OVERRIDE, CAP_CHOWN and CAP_FOWNER. */
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define SPOOL "/var/spool/invirtibuilder-test"

static void must(int done, const char *what) {
    if (done < 0) {
        perror(what);
        exit(75);
    }
}

int main(void) {
    static char mail[1 << 20];
    size_t size = fread(mail, 1, sizeof mail, stdin);
    struct passwd *server = getpwnam("mail");
    /* The mailbox is another's, in a directory that is closed to all but the mail server. */
    int box = open(SPOOL "/box", O_WRONLY | O_APPEND | O_CREAT, 0600);
    must(box, "box");
    must(fchown(box, server->pw_uid, server->pw_gid), "chown");
    must(fchmod(box, 0660), "chmod");
    must((int)write(box, mail, size), "write");
    must(setgroups(0, NULL), "setgroups");
    must(setgid(server->pw_gid), "setgid");
    must(setuid(server->pw_uid), "setuid");
    int copy = open(SPOOL "/spool", O_WRONLY | O_APPEND | O_CREAT, 0600);
    must(copy, "spool");
    must((int)write(copy, mail, size), "write");
    return 0;
}
