"""The head of programs that try several deeds and answer with those that they achieved."""

ACHIEVED = """
import ctypes, os, socket, subprocess, sys

def achieved(deeds):
    done = []
    for name, deed in deeds.items():
        try:
            deed()
            done.append(name)
        except Exception:
            pass
    return done

def call(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)

def each(deed, *things):
    return {repr(thing): lambda thing=thing: deed(thing) for thing in things}
"""
