//! The state machine that replaces secret values in a stream of bytes.
//!
//! A state is a node of the trie of all values. The bytes on the path to the node are held back, because they may still
//! become a value. If the next byte leads to no child, the beginning of the held bytes is decided: it is a value, or
//! not a part of one. The text to show then and the next state depend on the node alone, so they are computed ahead,
//! from the root outwards, as Aho and Corasick compute their failure links. The result equals that of a search for the
//! leftmost values, and the longest of those that begin at the same byte.
//!
//! Memory is at most 21 bytes per byte of the values. Building takes linear time but for a binary search
//! among the children of a node, and so does masking, whatever the values are and however the stream is cut.

/// Text that replaces a value.
const MASK: &[u8] = b"***";

/// The state in which nothing is held back.
const ROOT: u32 = 0;

/// The piece of text that is [`MASK`]. Smaller numbers are the byte of that value.
const MASK_PIECE: u32 = 256;

/// The number of the first piece that is two others in a row.
const FIRST_PAIR: u32 = 257;

/// See the module.
#[derive(Debug)]
pub(super) struct Transducer {
    /// The root's child for each byte; [`ROOT`] if it has none.
    begins: Box<[u32; 256]>,
    /// Last byte of each node. Nodes are numbered by their depth, and children of one node by their bytes.
    labels: Vec<u8>,
    /// Number of each node's first child. Its other children follow, up to the first child of the next node.
    children: Vec<u32>,
    /// The piece that each node shows when it is left for its `resume`.
    shown: Vec<u32>,
    /// The state after what was shown.
    resume: Vec<u32>,
    /// Pieces that are two others in a row.
    pairs: Vec<(u32, u32)>,
}

impl Transducer {
    /// Builds the machine for these values. All of them together have fewer than 2^30 bytes.
    pub(super) fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut values: Vec<&[u8]> = values.into_iter().collect();
        values.sort_unstable();
        values.dedup();
        let trie = Trie::new(&values);
        let mut begins = Box::new([ROOT; 256]);
        for child in 1..trie.children.get(1).copied().unwrap_or(1) {
            begins[usize::from(trie.labels[child as usize])] = child;
        }
        let nodes = trie.labels.len();
        let mut machine = Self {
            begins,
            labels: trie.labels,
            children: trie.children,
            shown: vec![MASK_PIECE; nodes],
            resume: vec![ROOT; nodes],
            pairs: Vec::new(),
        };
        machine.link(&trie.is_value);
        machine
    }

    /// Computes the text and the next state of every node, parents before their children.
    fn link(&mut self, is_value: &[bool]) {
        for parent in 0..self.labels.len() {
            for node in self.children[parent]..self.children[parent + 1] {
                let node = node as usize;
                // A value shows the mask and resumes at the root, as it was initialized.
                if !is_value[node] {
                    (self.shown[node], self.resume[node]) = self.undecided(parent, node);
                }
            }
        }
    }

    /// Computes the text and the next state of a node that is no value: those of its parent, and then the
    /// decision that its own byte brings.
    fn undecided(&mut self, parent: usize, node: usize) -> (u32, u32) {
        let byte = self.labels[node];
        if parent == ROOT as usize {
            return (u32::from(byte), ROOT);
        }
        let (mut shown, mut state) = (self.shown[parent], self.resume[parent]);
        loop {
            if let Some(next) = self.child(state, byte) {
                if !self.is_leaf(next) {
                    return (shown, next);
                }
                return (self.pair(shown, self.shown[next as usize]), ROOT);
            }
            if state == ROOT {
                return (self.pair(shown, u32::from(byte)), ROOT);
            }
            shown = self.pair(shown, self.shown[state as usize]);
            state = self.resume[state as usize];
        }
    }

    fn pair(&mut self, first: u32, second: u32) -> u32 {
        self.pairs.push((first, second));
        FIRST_PAIR + number(self.pairs.len() - 1)
    }

    fn child(&self, state: u32, byte: u8) -> Option<u32> {
        if state == ROOT {
            return Some(self.begins[usize::from(byte)]).filter(|child| *child != ROOT);
        }
        let first = self.children[state as usize];
        let labels = &self.labels[first as usize..self.children[state as usize + 1] as usize];
        let found = labels.binary_search(&byte).ok()?;
        Some(first + number(found))
    }

    /// Whether nothing longer begins with this node's bytes.
    fn is_leaf(&self, state: u32) -> bool {
        self.children[state as usize] == self.children[state as usize + 1]
    }

    /// Takes the next bytes of a stream, appends what is certain by now, and returns the state of the stream.
    pub(super) fn feed(&self, mut state: State, bytes: &[u8], out: &mut Vec<u8>) -> State {
        let mut rest = bytes.iter();
        loop {
            if state.0 == ROOT {
                let plain = rest.as_slice();
                let begins = |byte: &u8| self.begins[usize::from(*byte)] != ROOT;
                let length = plain.iter().position(begins).unwrap_or(plain.len());
                out.extend_from_slice(&plain[..length]);
                rest = plain[length..].iter();
            }
            let Some(&byte) = rest.as_slice().first() else {
                return state;
            };
            match self.child(state.0, byte) {
                Some(next) => {
                    rest.next();
                    state = State(next);
                    if self.is_leaf(next) {
                        state = self.decide(state, out);
                    }
                }
                None => state = self.decide(state, out),
            }
        }
    }

    /// Appends what the stream held back, because it has ended.
    pub(super) fn finish(&self, mut state: State, out: &mut Vec<u8>) {
        while state.0 != ROOT {
            state = self.decide(state, out);
        }
    }

    /// Shows what is decided when a node is left, and returns the state to go on in.
    fn decide(&self, State(node): State, out: &mut Vec<u8>) -> State {
        self.show(self.shown[node as usize], out);
        State(self.resume[node as usize])
    }

    fn show(&self, piece: u32, out: &mut Vec<u8>) {
        let mut next = Some(piece);
        // Without recursion: the first of two may be two others itself, as often as a value is long.
        let mut later = Vec::new();
        while let Some(piece) = next {
            match u8::try_from(piece) {
                Ok(byte) => out.push(byte),
                Err(_) if piece == MASK_PIECE => out.extend_from_slice(MASK),
                Err(_) => {
                    let (first, second) = self.pairs[(piece - FIRST_PAIR) as usize];
                    later.push(second);
                    next = Some(first);
                    continue;
                }
            }
            next = later.pop();
        }
    }
}

/// State of one stream, which says which bytes are held back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State(u32);

impl State {
    /// Whether anything is held back.
    pub(super) fn holds_something(self) -> bool {
        self.0 != ROOT
    }
}

/// The nodes of a [`Transducer`], before they are linked.
struct Trie {
    labels: Vec<u8>,
    children: Vec<u32>,
    is_value: Vec<bool>,
}

impl Trie {
    /// Builds the trie of values that are sorted, and of which no two are the same, level by level.
    fn new(values: &[&[u8]]) -> Self {
        let mut trie = Self {
            labels: vec![0],
            children: Vec::new(),
            is_value: vec![false],
        };
        let mut level = vec![values];
        let mut depth = 0;
        while !level.is_empty() {
            let mut next = Vec::new();
            for below in level {
                trie.children.push(number(trie.labels.len()));
                // The value that ends at this node comes first.
                let longer = below.iter().position(|value| value.len() > depth);
                let longer = &below[longer.unwrap_or(below.len())..];
                for group in longer.chunk_by(|a, b| a[depth] == b[depth]) {
                    trie.labels.push(group[0][depth]);
                    trie.is_value.push(group[0].len() == depth + 1);
                    next.push(group);
                }
            }
            level = next;
            depth += 1;
        }
        trie.children.push(number(trie.labels.len()));
        trie
    }
}

/// The number of a node or piece. There are at most two for each byte of the values, so it always fits.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
