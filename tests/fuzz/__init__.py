"""A fuzzer for the reader of artifacts: files that are nearly right, and what may become of them.

corpus.py     small artifacts of all kinds
anatomy.py    a file as its parts and back, by docs/artifact.md alone; seals parts that lie
bytewise.py   mutations of bytes
structural.py mutations of parts: fields of the table, metadata, directory, plain content, streams of codes
mutants.py    mutant number n of a seed: half of them resealed
oracle.py     what a reader may answer; everything else is a Finding
lines.py      which lines of the reader ran
campaign.py   many mutants in processes of bounded memory
guided.py     the same target and mutations, led by atheris

python -m tests.fuzz                    a million mutants
python -m tests.fuzz --only 123         what number 123 is, and what becomes of it
python -m tests.fuzz --atheris          led by coverage, where atheris is installed (`pip install '.[fuzz]'`)
"""
