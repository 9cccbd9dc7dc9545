"""What a GPU must show: `make test-gpu` on a machine with one card.

`prepare` makes targets and heads in a folder (no GPU needed), `plan` lists the cases, `case` runs one of them in a
process of its own, `drive` runs them all and prints one table. `make test-gpu-kit` packs the folder and this package
into the one archive that a card without a clone needs.
"""
