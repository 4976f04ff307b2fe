"""A pytest plugin for mutation testing: a failing example is enough, and hypothesis looks for no smaller one."""

from hypothesis import Phase, settings

settings.register_profile("no shrinking", phases=(Phase.explicit, Phase.generate), database=None)
settings.load_profile("no shrinking")
