//! WebSocket frames are refused by their declared length.
