"""What a node believes of its own speed, and of the others' promises."""
