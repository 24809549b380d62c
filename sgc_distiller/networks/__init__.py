"""The networks of the baselines, one module each, with the baselines' key names and initialisation.

Every discriminator has ``judge(x)``, which also returns the activations after each hidden layer. Each
module has functions that read a network's sizes from a state dictionary.
"""
