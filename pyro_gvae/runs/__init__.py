"""Write run folders and read them back."""
