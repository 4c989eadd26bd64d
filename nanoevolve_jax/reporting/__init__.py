"""What a search found, told to people; everything here only reads run folders."""
