//! Warnings of the server about requests, and the warning about a key that is sent unencrypted.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::{Response, Url};
use url::Host;

/// The response header with the server's warnings about a request.
const WARNING: &str = "x-isol8-warning";

/// Passes warnings to a handler. Clones share which warnings have been given.
#[derive(Clone)]
pub(crate) struct Warnings(Arc<Inner>);

struct Inner {
    handler: Box<dyn Fn(&str) + Send + Sync>,
    has_warned_of_clear_text: AtomicBool,
}

impl Default for Warnings {
    fn default() -> Self {
        Self::to(|text| log::warn!("{text}"))
    }
}

impl fmt::Debug for Warnings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warnings").finish_non_exhaustive()
    }
}

impl Warnings {
    pub(crate) fn to(handler: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner {
            handler: Box::new(handler),
            has_warned_of_clear_text: AtomicBool::new(false),
        }))
    }

    /// Warns once, before the first request, of a key that leaves this machine unencrypted.
    pub(crate) fn before_sending_to(&self, server: &Url) {
        if sends_in_clear(server)
            && !self
                .0
                .has_warned_of_clear_text
                .swap(true, Ordering::Relaxed)
        {
            let host = server.host_str().unwrap_or_default();
            (self.0.handler)(&format!(
                "the key and all that is sent to {host} can be read on the way: use https://, or a tunnel to the \
                 server's loopback"
            ));
        }
    }

    /// Passes on the warnings of an answer.
    pub(crate) fn of_answer(&self, response: &Response) {
        let values = response.headers().get_all(WARNING);
        for text in values.iter().filter_map(|value| value.to_str().ok()) {
            (self.0.handler)(text);
        }
    }
}

/// Returns whether requests to an address leave this machine unencrypted.
fn sends_in_clear(server: &Url) -> bool {
    let stays_here = match server.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        None => true,
    };
    server.scheme() == "http" && !stays_here
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use isol8_api::{ExecutionRequest, Runtime};

    use super::*;
    use crate::fake::{Fake, answer};

    #[test]
    fn a_key_leaves_this_machine_in_clear_over_http_to_any_host_but_loopback() {
        for (address, expected) in [
            ("http://isol8.example.com", true),
            ("HTTP://10.0.0.1:3000/", true),
            ("http://[2001:db8::1]:3000", true),
            ("http://localhost.example.com", true),
            ("https://isol8.example.com", false),
            ("http://127.0.0.1:3000", false),
            ("http://127.1:3000", false),
            ("http://[::1]:3000", false),
            ("http://[::ffff:127.0.0.1]:3000", false),
            ("http://localhost:3000", false),
            ("http://dev.localhost", false),
        ] {
            let url = address.parse().unwrap();
            assert_eq!(sends_in_clear(&url), expected, "{address}");
        }
    }

    /// Returns a handler, and the warnings that it gets.
    fn recorder() -> (Warnings, Arc<Mutex<Vec<String>>>) {
        let told = Arc::<Mutex<Vec<String>>>::default();
        let list = Arc::clone(&told);
        let record = move |text: &str| list.lock().unwrap().push(text.to_owned());
        (Warnings::to(record), told)
    }

    #[test]
    fn a_key_in_clear_is_warned_of_once() {
        let (warnings, told) = recorder();
        for server in ["https://host", "http://host", "http://host"] {
            warnings.clone().before_sending_to(&server.parse().unwrap());
        }
        let told = told.lock().unwrap();
        assert!(
            told.len() == 1 && told[0].contains("can be read on the way"),
            "{told:?}"
        );
    }

    #[tokio::test]
    async fn warnings_of_the_server_are_passed_on_whatever_carries_the_answer() {
        let headers = "X-Isol8-Warning: doubtful\r\nX-Isol8-Warning: odd\r\n";
        let result = r#"{"stdout":"","stderr":"","exitCode":0,"durationMs":1,"truncated":false,"executionId":
            "00000000-0000-0000-0000-000000000000","runtime":"bash","timestamp":"t","containerId":"c"}"#;
        let exit = "data: {\"type\":\"exit\",\"data\":\"0\",\"phase\":\"code\"}\n\n";
        let request = || {
            let mut request = ExecutionRequest::new(Runtime::Bash);
            request.code = Some("true".to_owned());
            request
        };
        let (warnings, told) = recorder();
        let fake = Fake::answering(&[&answer("200 OK", headers, result)]).await;
        let remote = fake.remote.clone().with_warnings_to(warnings.clone());
        remote.execute(request()).await.unwrap();
        assert_eq!(*told.lock().unwrap(), ["doubtful", "odd"]);

        let events = answer("200 OK", headers, exit);
        let fake = Fake::answering(&["", &events]).await;
        let remote = fake.remote.clone().with_warnings_to(warnings);
        let mut run = remote.execute_stream(request()).await.unwrap();
        while run.next().await.is_some() {}
        assert_eq!(told.lock().unwrap().len(), 4);
    }
}
