"""A compact trainer for the Parameter Golf contest: what makes a number.

Reading order: `settings` and `recipe` (every setting, and how it is read), `corpus`, `tokenizer`, `shards` and `data`
(the tokens), `loader` (batches that know their ranges), `model`, `muon`, `training`, then `gptq`, `artifact` and
`scoring` (the submission and its score), and `adapt` (training on the validation stream, which may make a score worth
nothing). `python -m trainer --help` lists the commands.
"""
