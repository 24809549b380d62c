"""Studies: lists of experiments, run side by side over seeds, and tables of what came out.

An experiment is a schedule file, with the sparsity, the seed and the size that it is run at; a study is a
list of experiments; a table is a view of result records.
"""
