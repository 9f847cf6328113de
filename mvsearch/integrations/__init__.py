"""What other tools bring to a study, and what a study brings to them."""
