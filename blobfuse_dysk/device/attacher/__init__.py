"""What the attaching and detaching processes do."""
