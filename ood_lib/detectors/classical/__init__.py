"""The classical detectors, one file per method."""
