"""What is measured of a layout on a device: trainings, throughput, memory."""
