"""The Countdown game: problems, prompt, scoring, solver, generator. Standard library only, and never torch.

Training and evaluation know the game through one module, `mini_r1.tasks.countdown.task`.
"""
