//! Checks the certificate authorities that sandboxes trust, with a program in a sandbox.

use isol8_actors::{Job, Program, Service};
use isol8_api::{Runtime, TenantId};
use isol8_config::Config;

use super::finding::PROBE_TIMEOUT;

/// Counts the certificates in the file that programs are pointed to.
const COUNT: &str = "grep -c 'BEGIN CERTIFICATE' \"$SSL_CERT_FILE\"";

/// Describes the certificates in a sandbox of this backend, compared with those of the configuration.
pub(super) async fn report(service: &Service, config: &Config) -> String {
    let Some(certificates) = &config.startup.certificates else {
        return "none: this host has no bundle; name one in network.caBundle".to_owned();
    };
    let expected = certificates.count();
    match count(service, config).await {
        Ok(found) if found == expected.to_string() => {
            format!(
                "ok: sandboxes trust {expected} authorities, this host's and network.caBundle's"
            )
        }
        Ok(found) => format!("no: sandboxes see {found:?} authorities of {expected}"),
        Err(reason) => format!("not tried: {reason}"),
    }
}

async fn count(service: &Service, config: &Config) -> Result<String, String> {
    let program = Program::source(COUNT, Runtime::Bash);
    let mut job = Job::new(program, config.defaults.sandbox.spec(Runtime::Bash))
        .map_err(|error| error.to_string())?;
    job.timeout = PROBE_TIMEOUT;
    let result = service.execute(TenantId::master(), None, job).await;
    let result = result.map_err(|error| error.to_string())?;
    Ok(result.stdout.trim_end().to_owned())
}
