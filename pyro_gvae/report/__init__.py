"""Draw run folders as figures and self-contained pages."""
