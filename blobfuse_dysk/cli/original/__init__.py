"""The verbs and flags of the original dysk."""
