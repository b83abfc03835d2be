"""Work before a model is loaded: completing and checking recipes, warnings, dry runs, replaying."""
