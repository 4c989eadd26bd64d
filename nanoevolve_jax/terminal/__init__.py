"""What people see in a terminal: help, mistakes, progress, pages."""
