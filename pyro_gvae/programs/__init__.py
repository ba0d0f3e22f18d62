"""Reading a program: its sites, and the score of each code."""
