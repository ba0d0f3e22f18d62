"""Run folders as figures and self-contained pages."""
