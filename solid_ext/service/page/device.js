// A model on this device: what solid_ext.device computes in numpy, for one person, in JavaScript's doubles.
"use strict";

const EPS = 1e-5; // of a layer norm
const ARRAYS = { F32: Float32Array, I32: Int32Array };

// The arrays and the metadata of a safetensors file: a length of 8 bytes, so much JSON, and the arrays' bytes.
function readTensors(buffer) {
  const size = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  const { __metadata__: metadata, ...entries } = header;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [first, end] }] of Object.entries(entries)) {
    const values = new ARRAYS[dtype](buffer.slice(8 + size + first, 8 + size + end)); // a copy is aligned
    tensors[name] = { values, shape };
  }
  return { tensors, metadata };
}

function rowsOf({ values, shape }) {
  const columns = shape[1];
  return Array.from({ length: shape[0] }, (_, row) => values.subarray(row * columns, (row + 1) * columns));
}

const dot = (a, b) => a.reduce((sum, value, place) => sum + value * b[place], 0);
const plus = (a, b) => Array.from(a, (value, place) => value + b[place]);
const sigmoid = (x) => 1 / (1 + Math.exp(-x));

// 2 / sqrt(pi) e^(-x^2) sum 2^n x^(2n+1) / (2n+1)!!, all of whose terms have one sign.
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n += 1) sum += term *= (2 * x * x) / (2 * n + 1);
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

function softmax(scores) {
  const largest = Math.max(...scores);
  const grown = scores.map((score) => Math.exp(score - largest));
  const all = grown.reduce((sum, value) => sum + value, 0);
  return grown.map((value) => value / all);
}

class DeviceModel {
  constructor(buffer, { items, titles }) {
    const { tensors, metadata } = readTensors(buffer);
    this.static = tensors;
    this.version = metadata.version;
    this.about = JSON.parse(metadata.about);
    this.ids = items;
    this.titles = titles;
    this.numbers = new Map(items.map((item, place) => [String(item), place]));
    this.rows = Object.fromEntries(
      Object.entries(tensors).filter(([, { shape }]) => shape.length === 2).map(([name, tensor]) => [name, rowsOf(tensor)]),
    );
    this.embedded = this.rows.items;
    const hidden = (row) => this.linear("target.0", row).map(Math.tanh);
    this.keys = this.about.target === "item" ? this.embedded : this.embedded.map((row) => this.linear("target.2", hidden(row)));
    this.layers = this.generated("anybody", this.rows);
    this.window = [];
    this.seen = new Set();
    this.added = [];
  }

  // The blob of a person, in place of the last one and of what was observed since.
  load(buffer) {
    const { tensors, metadata } = readTensors(buffer);
    if (metadata.static !== this.version) throw new Error("The layers are of another model than this device has.");
    const rows = Object.fromEntries(
      Object.entries(tensors).filter(([name]) => name.startsWith("layers.")).map(([name, tensor]) => [name, rowsOf(tensor)]),
    );
    this.layers = this.generated("layers", rows);
    this.window = Array.from(tensors.window.values);
    this.seen = new Set([...this.window, ...tensors.seen.values]);
    const scores = tensors["neighbours.scores"].values;
    this.added = Array.from(tensors["neighbours.items"].values, (item, place) => [item, scores[place]]);
  }

  observe(item) {
    const place = this.numbers.get(String(item));
    this.window = [...this.window, place].slice(-this.about.length);
    this.seen.add(place);
  }

  // The k best items, of equal ones the lower one first.
  recommend(k) {
    const entry = (item, score) => ({ item: this.ids[item], title: this.titles[item], score });
    if (!this.window.length) {
      const scores = this.static["popular.scores"].values;
      return Array.from(this.static["popular.items"].values.slice(0, k), (item, place) => entry(item, scores[place]));
    }
    const scores = this.scores();
    const places = [...scores.keys()].filter((place) => !this.seen.has(place));
    return places.sort((one, other) => scores[other] - scores[one] || one - other).slice(0, k).map((place) => entry(place, scores[place]));
  }

  scores() {
    const history = this.window.map((place) => this.embedded[place]);
    let scores;
    if (this.about.backbone === "din") {
      const keys = history.map((row) => this.linear("backbone.key", row));
      scores = this.embedded.map((row, place) => dot(this.personal(this.din(history, keys, row)), this.keys[place]));
    } else {
      const state = this.personal(this[this.about.backbone](history));
      scores = this.keys.map((row) => dot(state, row));
    }
    for (const [item, score] of this.added) scores[item] += score;
    return scores;
  }

  generated(name, rows) {
    return Array.from({ length: this.about.generated }, (_, layer) => rows[`${name}.${layer}`]);
  }

  linear(name, x) {
    const bias = this.static[`${name}.bias`]?.values;
    return this.rows[`${name}.weight`].map((row, place) => dot(x, row) + (bias ? bias[place] : 0));
  }

  norm(name, x) {
    const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
    const centred = Array.from(x, (value) => value - mean);
    const scale = Math.sqrt(dot(centred, centred) / x.length + EPS);
    const { [`${name}.weight`]: weight, [`${name}.bias`]: bias } = this.static;
    return centred.map((value, place) => (value / scale) * weight.values[place] + bias.values[place]);
  }

  // The last layers on a state: the generated ones, or everybody's with what is generated for them.
  personal(state) {
    let made = state;
    for (let layer = 0; layer < this.about.dynamic_layers; layer += 1) {
      if (layer) made = made.map(Math.tanh);
      if (this.about.layers === "full") made = affine(made, this.layers[layer]);
      else if (this.about.layers === "low_rank") {
        const entered = this.rows[`dynamic.enter.${layer}.weight`].map((row) => dot(made, row));
        made = this.linear(`dynamic.leave.${layer}`, affine(entered, this.layers[layer]));
      } else made = this.linear(`dynamic.${this.about.layers === "bias" ? "layers." : ""}${2 * layer}`, made);
    }
    if (this.about.layers === "bias") made = plus(made, this.layers[0][0]);
    const gate = this.static.gate?.values[0];
    return gate === undefined ? made : made.map((value, place) => state[place] + gate * value);
  }

  sasrec(history) {
    const position = this.rows["backbone.position.weight"], last = history.length - 1;
    return this.transformed(history.map((row, place) => plus(row, position[last - place])), true);
  }

  bert4rec(history) {
    const position = this.rows["backbone.position.weight"], { length } = history;
    const token = plus(this.static["backbone.token"].values, position[0]);
    return this.transformed([...history.map((row, place) => plus(row, position[length - place])), token], false);
  }

  transformed(states, causal) {
    const blocks = this.about.blocks;
    for (let block = 0; block < blocks; block += 1) {
      const asked = block === blocks - 1 ? [states.length - 1] : [...states.keys()];
      states = this.block(`backbone.blocks.${block}`, states, asked, causal);
    }
    return this.norm("backbone.norm", states[0]);
  }

  // A pre-normalised transformer block, for the states at the places that are asked for.
  block(name, states, asked, causal) {
    const { heads } = this.about, width = states[0].length / heads;
    const normed = states.map((state) => this.norm(`${name}.norm_attention`, state));
    const both = normed.map((state) => this.linear(`${name}.key_value`, state));
    return asked.map((place) => {
      const query = this.linear(`${name}.query`, normed[place]);
      const seen = causal ? both.slice(0, place + 1) : both;
      const attended = [];
      for (let head = 0; head < heads; head += 1) {
        const part = (row, first) => row.slice(first + head * width, first + (head + 1) * width);
        const own = part(query, 0);
        const share = softmax(seen.map((row) => dot(own, part(row, 0)) / Math.sqrt(width)));
        for (let at = 0; at < width; at += 1) {
          attended.push(seen.reduce((sum, row, other) => sum + share[other] * row[heads * width + head * width + at], 0));
        }
      }
      const state = plus(states[place], this.linear(`${name}.out`, attended));
      const hidden = this.linear(`${name}.feed.0`, this.norm(`${name}.norm_feed`, state));
      return plus(state, this.linear(`${name}.feed.2`, hidden.map((value) => (value / 2) * (1 + erf(value / Math.SQRT2)))));
    });
  }

  gru4rec(history) {
    const width = history[0].length, cell = "backbone.gru.cell";
    const product = (kind, x) => {
      const bias = this.static[`${cell}.bias_${kind}`].values;
      return this.rows[`${cell}.weight_${kind}`].map((row, place) => dot(x, row) + bias[place]);
    };
    let state = new Array(width).fill(0);
    for (const row of history) {
      const input = product("ih", row), hidden = product("hh", state);
      state = state.map((value, place) => {
        const update = sigmoid(input[width + place] + hidden[width + place]);
        const reset = sigmoid(input[place] + hidden[place]);
        const fresh = Math.tanh(input[2 * width + place] + reset * hidden[2 * width + place]);
        return fresh + update * (value - fresh);
      });
    }
    return state;
  }

  // The state of one candidate.
  din(history, keys, candidate) {
    const query = this.linear("backbone.query", candidate);
    const slope = this.static["backbone.activation.weight"].values[0];
    const interest = new Array(candidate.length).fill(0);
    history.forEach((row, place) => {
      const pair = this.rows["backbone.product.weight"].map((weights) => weights.reduce((sum, w, at) => sum + w * candidate[at] * row[at], 0));
      const hidden = pair.map((value, at) => value + query[at] + keys[place][at]);
      const [share] = this.linear("backbone.weight", hidden.map((value) => (value > 0 ? value : slope * value)));
      row.forEach((value, at) => { interest[at] += share * value; });
    });
    return this.linear("backbone.out", [...interest, ...candidate]);
  }
}

// x W + b of generated weights, whose last row is b.
function affine(x, rows) {
  const made = Array.from(rows[rows.length - 1]);
  x.forEach((value, place) => rows[place].forEach((weight, at) => { made[at] += value * weight; }));
  return made;
}
