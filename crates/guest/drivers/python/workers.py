"""The main module of a worker of `multiprocessing` that is started afresh: the definitions of cells.

Such a worker (`spawn`, `forkserver`) loads the main module from a file, and a session has none. So the worker gets
the definitions, imports and constants of all cells, and nothing that computes. A name that is missing there is
told as the error of the task that needs it: unpickling it must not fail, because that ends a worker, whose pool
makes another, for ever.
"""

HEAD = '''
class _Missing:
    def __init__(self, *_, **__):
        raise RuntimeError(
            f"{type(self).__name__} is not known in a worker process of this session: workers know the functions, "
            "classes, imports and constants at the top level of cells; move it there or into a module, or use "
            "the start method 'fork'"
        )

    def __setstate__(self, _):
        pass

    def __getattr__(self, name):
        if name[:2] == "__":
            raise AttributeError(name)
        self.__init__()


def __getattr__(name):
    if name[:2] == "__":
        raise AttributeError(name)
    return type(name, (_Missing,), {})


'''


def definitions(ast, source):
    """The statements of a cell that only define something."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return

    def is_constant(value):
        try:
            ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, RecursionError):
            return False
        return True

    imports = ast.Import, ast.ImportFrom
    kept = *imports, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    for statement in tree.body:
        is_future = isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
        is_try = isinstance(statement, ast.Try) and all(isinstance(each, imports) for each in statement.body)
        is_value = isinstance(statement, (ast.Assign, ast.AnnAssign)) and is_constant(statement.value)
        if not is_future and (isinstance(statement, kept) or is_try or is_value):
            yield statement


def main_file(own_module, cells):
    """Writes the file, and returns its path."""
    ast, os, tempfile = map(own_module, ("ast", "os", "tempfile"))
    parts = [HEAD]
    for source in cells:
        for statement in definitions(ast, source):
            # A definition that fails here is missing when it is used.
            body = ast.Try(
                body=[statement],
                handlers=[ast.ExceptHandler(ast.Name("Exception", ast.Load()), None, [ast.Pass()])],
                orelse=[],
                finalbody=[],
            )
            parts.append(ast.unparse(ast.fix_missing_locations(ast.Module([body], []))) + "\n")
    path = os.path.join(tempfile.gettempdir(), f".cells-{os.getpid()}.py")
    with open(f"{path}.new", "w") as file:
        file.writelines(parts)
    os.replace(f"{path}.new", path)
    return path
