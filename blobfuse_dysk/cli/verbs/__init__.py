"""The verbs of dyskctl."""
