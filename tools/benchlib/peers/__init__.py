"""What is measured beside this project in the same run, each in a file; `start` has what they share."""
