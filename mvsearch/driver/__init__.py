"""Running a study: launch, search, calibrate, confirm, and telling how far they are."""
