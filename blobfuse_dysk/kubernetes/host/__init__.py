"""A node's driver outside its container: on the machine, where attachments outlive it."""
