"""What the models screen is made of: its rows, and pulling."""
