"""The Countdown game: problems, prompt, scoring, solver, generator. Needs only the standard library and `errors`.

Training and evaluation know the game through one module, `mini_r1.tasks.countdown.task`.
"""
