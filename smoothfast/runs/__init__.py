"""Runs over a data set, and their files.

certify.py, shards.py    images through a smoothed classifier into a log, by one process or many
attack.py                images through an attack; attack_options.py what each attack takes, attack_files.py its files
sweep.py                 accuracy by noise, voting rule and number of samples
records.py               what the files of records have in common: logs.py, sweep_log.py
tables.py, plots.py      what logs and sweeps say, in text and in pictures

Needs no torch: attack_options, records, logs, sweep_log, tables, plots.
"""
