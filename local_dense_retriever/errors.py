"""The one exception that the two command-line tools turn into a message instead of a traceback."""


class InputError(Exception):
    """Something the user gave us is wrong: a path, a file's content, a flag, a port.

    The text is one sentence that names the thing and says what to do about it.
    """
