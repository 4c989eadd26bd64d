"""What source must be to become a program; runs in the jail's child process."""
