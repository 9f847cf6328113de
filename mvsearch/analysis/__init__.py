"""What the measurements of a study mean."""
