"""What tools/bench is made of: each module measures one thing and returns plain dictionaries."""
