"""The seven stages of the line, one file a stage. They never import each other."""
