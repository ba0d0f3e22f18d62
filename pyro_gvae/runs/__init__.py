"""Run folders: what is written, kept and read again."""
