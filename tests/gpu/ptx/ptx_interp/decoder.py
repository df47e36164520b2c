"""PTX text decoded: kernels, the functions that they call, and variables."""

import re

from .program import Instr, Kernel, Var, split_args
from .report import Unsupported

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
DEBUG = re.compile(r"\.section\s+[.\w]+\s*\{.*?\}", re.DOTALL)
ENTRY = re.compile(r"\.(entry|func)\b")
HEADER = re.compile(r"^\s*(\.(version|target|address_size|file|loc)\b[^\n]*\n?\s*)*")
STOPS = "{};:\n"
BRACE = re.compile("[{}]")
PIECE = re.compile(f"[{STOPS}]|[^{STOPS}]+")
MOST_CALLS = 20  # within each other


class Program:
    """The kernels of a PTX text; each is decoded when it is first asked for, most never are."""

    def __init__(self, text):
        self.files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE))
        self.kernels, self.globals, self.functions = {}, [], {}
        self._entries = {}
        text = DEBUG.sub(" ", COMMENT.sub(" ", text))
        at = 0
        while True:
            m = ENTRY.search(text, at)
            self._read_globals(text[at : m.start() if m else len(text)])
            if not m:
                break
            at = self._read_function(text, m)

    def kernel(self, name):
        """A kernel, decoded."""
        kernel = self.kernels[name]
        if name in self._entries:
            body = self._entries.pop(name)
            Body(self, kernel).decode(body)
            texts = [body, *(text for _, text in self.functions.values())]
            own = [v for v in self.globals if v.space == "shared" and not v.dynamic]
            kernel.shared += [v for v in own if any(v.name in text for text in texts)]
        return kernel

    def _read_globals(self, chunk):
        for text in chunk.split(";"):
            declaration = HEADER.sub("", text).strip()
            if re.match(r"(\.(visible|extern|weak|common)\s+)*\.(global|shared|const)\b", declaration):
                self.globals.append(Var(declaration))

    def _read_function(self, text, m):
        """Keeps the body of what begins at m, and says where it ends."""
        begin = text.index("{", m.end())
        semicolon = text.find(";", m.end())
        if 0 <= semicolon < begin:  # a forward declaration
            return semicolon + 1
        head, depth, end = text[m.end() : begin], 1, begin + 1
        while depth:
            brace = BRACE.search(text, end)
            depth += 1 if brace.group() == "{" else -1
            end = brace.end()
        body = text[begin + 1 : end - 1]
        if m.group(1) == "entry":
            name = re.match(r"\s*([\w$.]+)", head).group(1)
            listed = re.search(r"\((.*?)\)", head, re.DOTALL)
            required = re.search(r"\.reqntid\s+([\d,\s]+)", head)
            self.kernels[name] = Kernel(name, [Var(p) for p in split_args(listed.group(1))] if listed else [])
            self.kernels[name].reqntid = [int(v) for v in required.group(1).split(",")] if required else None
            self._entries[name] = body
        else:  # .func (returns) name (parameters)
            h = re.match(r"\s*(?:\((.*?)\))?\s*([\w$]+)\s*(?:\((.*?)\))?", head, re.DOTALL)
            formals = [[Var(p).name for p in split_args(h.group(g) or "")] for g in (1, 3)]
            self.functions[h.group(2)] = (formals, body)
        return end


def statements(body):
    """What a body consists of: statements, labels with their colon, and the braces of scopes.

    A brace that opens a statement is a scope (inline asm); any other brace is a vector operand."""
    current, depth = "", 0
    for piece in PIECE.findall(body):  # a stop by itself, or what is between stops
        stop = piece if piece in STOPS else ""
        if stop == "{" and not current.strip():
            yield "{"
            continue
        if stop == "}" and depth == 0:
            yield current.strip()
            yield "}"
            current = ""
            continue
        depth += (stop == "{") - (stop == "}")
        if stop == ";" or (stop == "\n" and re.match(r"\s*\.(loc|file)\b", current)):  # these end at the line
            yield current.strip()
            current = ""
        elif stop == ":" and re.fullmatch(r"\s*[\w$%]+", current):  # not 'st.shared::cta'
            yield current.strip() + ":"
            current = ""
        else:
            current += piece


class Body:
    """A body that is being decoded into the code of a kernel. A call is expanded in place: `names` maps the formal
    parameters to the caller's, `uid` makes names unique, `end` is where `ret` goes."""

    def __init__(self, program, kernel, names=None, uid="", end=None, depth=0):
        if depth > MOST_CALLS:
            raise Unsupported("recursion")
        self.program, self.kernel, self.uid, self.end, self.depth = program, kernel, uid, end, depth
        self.scopes, self.opened, self.loc = [dict(names or {})], 0, None

    def decode(self, text):
        for statement in statements(text):
            if statement == "{":
                self.opened += 1
                self.scopes.append({})
            elif statement == "}":
                self.scopes.pop()
            elif statement.endswith(":") and " " not in statement:
                if "::" not in statement[:-1]:
                    self.kernel.labels[statement[:-1] + self.uid] = len(self.kernel.code)
            elif statement.startswith("."):
                self._directive(statement)
            elif statement:
                self._instruction(statement)

    @property
    def _flat(self):
        """Whether names are those of the kernel as they stand."""
        return len(self.scopes) == 1 and not self.uid

    def _directive(self, text):
        if m := re.match(r"\.loc\s+(\d+)\s+(\d+)", text):
            if m.group(2) != "0":
                self.loc = (self.program.files.get(m.group(1), "?").split("/")[-1], int(m.group(2)))
        elif m := re.match(r"\.reg\s+\.(\w+)\s+(.*)", text, re.DOTALL):
            self._registers(*m.groups())
        elif re.match(r"\.(shared|local|param)\b", text):
            self._variable(Var(text))
        elif m := re.match(r"\.branchtargets\s+(.*)", text, re.DOTALL):  # its label is the table's name
            labels = reversed(list(self.kernel.labels.items()))
            name = next(label for label, pc in labels if pc == len(self.kernel.code))
            self.kernel.tables[name] = [label + self.uid for label in split_args(m.group(1))]

    def _registers(self, type_, names):
        for entry in split_args(names):
            m = re.match(r"([%\w$.]+)<(\d+)>", entry)
            for name in [f"{m.group(1)}{i}" for i in range(int(m.group(2)))] if m else [entry]:
                unique = name if self._flat else f"{name}@{self.opened}{self.uid}"
                self.scopes[-1][name] = unique
                self.kernel.regs[unique] = type_

    def _variable(self, variable):
        if variable.space == "shared":
            if all(other.name != variable.name for other in self.kernel.shared):
                self.kernel.shared.append(variable)
            return
        plain = variable.space == "local" and not self.uid  # the parameters of calls are memory of a thread, too
        unique = variable.name if plain else f"{variable.name}@{self.opened}{self.uid}"
        self.scopes[-1][variable.name] = variable.name = unique
        self.kernel.local.append(variable)

    def _rename(self, text):
        def unique(m):
            return next((scope[m.group(0)] for scope in reversed(self.scopes) if m.group(0) in scope), m.group(0))

        return text if self._flat else re.sub(r"%?[\w$]+", unique, text)

    def _instruction(self, text):
        predicate = re.match(r"@(!?)\s*([%\w$.]+)\s+(.*)", text, re.DOTALL)
        head, rest = re.match(r"(\S+)\s*(.*)", predicate.group(3) if predicate else text, re.DOTALL).groups()
        operands = split_args(rest)
        op, *mods = head.replace("::", "__").split(".")
        ins = Instr(op, mods, [self._rename(operand) for operand in operands], text=" ".join(text.split()))
        ins.loc, ins.pc = self.loc, len(self.kernel.code)
        if predicate:
            ins.neg, ins.pred = bool(predicate.group(1)), self._rename(predicate.group(2))
        if ins.op == "bra":
            ins.args = [operands[0] + self.uid]
        elif ins.op == "brx":
            ins.args = [ins.args[0], operands[1] + self.uid]
        elif ins.op == "ret" and self.end:
            ins.op, ins.args = "bra", [self.end]
        elif ins.op == "call":
            self._call(ins)
            return
        self.kernel.code.append(ins)

    def _call(self, ins):
        kernel = self.kernel
        lists = [split_args(a[1:-1]) if a.startswith("(") else a for a in ins.args]
        returned = lists.pop(0) if isinstance(lists[0], list) else []
        name, actual = lists[0], lists[1] if len(lists) > 1 else []
        if name == "vprintf":
            return
        kernel.calls += 1
        uid, end = f"@c{kernel.calls}", f"$end@c{kernel.calls}"
        if name == "__assertfail":
            ins.op = "trap"
        if name not in self.program.functions:  # unsupported, if it is reached
            kernel.code.append(ins)
            return
        if ins.pred:  # @p call: the others jump over it
            ins.op, ins.args, ins.neg = "bra", [end], not ins.neg
            kernel.code.append(ins)
        (results, parameters), body = self.program.functions[name]
        names = dict(zip(results + parameters, returned + actual, strict=False))
        Body(self.program, kernel, names, uid, end, self.depth + 1).decode(body)
        kernel.labels[end] = len(kernel.code)
