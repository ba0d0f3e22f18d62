"""Reading a program: its sites, and the score of every code."""
