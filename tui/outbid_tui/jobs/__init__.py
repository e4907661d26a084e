"""What the jobs screen is made of: its rows, their order, and the views of one job."""
