"""What a layer costs on a machine: energy, accesses to each memory, cycles, and the bound that holds it back."""
