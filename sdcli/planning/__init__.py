"""What will be made, before anything is loaded: recipes completed and checked, warnings, dry runs, replays."""
