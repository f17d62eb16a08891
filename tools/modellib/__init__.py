"""An explicit-state model of the one-writer protocol, and the search through its states. See tools/model --help."""
