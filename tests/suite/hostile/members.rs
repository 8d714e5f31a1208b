//! Every member of a request filled to its limit with adversarial content.
