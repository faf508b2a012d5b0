"""The commands of the official SPIN scripts (github.com/uclaml/SPIN) on their own files, over the stages of this project.

`reformat`, `generate`, `gather` and `finetune` take the flags and read and write the files that `spin/reformat.py`,
`spin/generate.py`, `spin/convert_data.py` and `spin/run_spin.py` do. What they do differently is listed in docs/paper.md.
"""
