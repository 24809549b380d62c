"""The networks of the baselines, one module each, with the baselines' key names and initialisation."""
