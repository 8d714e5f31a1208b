//! The configuration in effect, and the objects that are built from it. No other place builds them.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use isol8_actors::ServiceConfig;
use isol8_actors::pool::{HostProcessors, Kind, PoolConfig, PoolSize};
use isol8_config::Config;
use isol8_egress::{Egress, EgressError};
use isol8_registry_cache::{RegistryCache, Settings};

use crate::images::Images;

/// A configuration in effect: its values, which can be read through this type, and the objects that are built from them.
#[derive(Clone, Debug)]
pub struct ActiveConfig {
    config: Config,
    images: Images,
    egress: Egress,
    package_cache: Option<RegistryCache>,
}

impl Deref for ActiveConfig {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.config
    }
}

impl ActiveConfig {
    /// Builds the objects of a configuration that is to take effect.
    ///
    /// # Errors
    /// Returns an [`EgressError`] if a rule of the network is not valid. The checks of a loaded configuration exclude
    /// that.
    pub fn new(config: Config) -> Result<Self, EgressError> {
        Ok(Self {
            images: Images::new(&config.startup.images),
            egress: Egress::new(config.network.clone())?,
            package_cache: package_cache(&config),
            config,
        })
    }

    /// Returns the configuration after a reload, and the changed keys that need a restart. Objects whose settings are
    /// the same are kept.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn reload(&self, read: Config) -> Result<(Self, Vec<&'static str>), EgressError> {
        let (config, needs_restart) = self.config.reload(read);
        let reloaded = Self {
            images: self.images.clone(),
            egress: match config.network == self.config.network {
                true => self.egress.clone(),
                false => Egress::new(config.network.clone())?,
            },
            package_cache: match config.packages == self.config.packages {
                true => self.package_cache.clone(),
                false => package_cache(&config),
            },
            config,
        };
        Ok((reloaded, needs_restart))
    }

    /// Returns the images, with what is known of their content.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Returns the proxy that applies the rules for the network.
    #[must_use]
    pub fn egress(&self) -> &Egress {
        &self.egress
    }

    /// Returns the package cache; `None` if it is off.
    #[must_use]
    pub fn package_cache(&self) -> Option<&RegistryCache> {
        self.package_cache.as_ref()
    }

    /// Returns the settings of the service.
    #[must_use]
    pub fn service(&self) -> ServiceConfig {
        service_config(&self.config, self.images.pools(&self.config.pool.sizes))
    }
}

/// Returns the settings of a service whose pool keeps sandboxes of these images ready, in addition to the runtimes' own.
#[must_use]
pub fn service_config(config: &Config, images: BTreeMap<Kind, PoolSize>) -> ServiceConfig {
    ServiceConfig {
        pool: PoolConfig {
            strategy: config.pool.strategy,
            sizes: config.pool.sizes.clone(),
            images,
            max_age: config.pool.max_age,
            refill_width: config.pool.refill_width,
            sandbox: config.defaults.sandbox,
            processors: Arc::new(HostProcessors::default()),
            ..PoolConfig::default()
        },
        sessions: config.sessions,
        admission: config.admission.clone(),
        pruner: config.cleanup,
        shutdown_grace: config.startup.shutdown.grace,
        keep_sessions: config.startup.shutdown.keep_sessions,
    }
}

/// Makes the configured cache; `None` if it is off. Two caches may use the same directory.
fn package_cache(config: &Config) -> Option<RegistryCache> {
    let packages = &config.packages;
    let settings = Settings {
        directory: packages.cache_directory(&config.startup.state),
        max_bytes: packages.max_bytes,
        page_ttl: packages.ttl,
        python: packages.python.clone(),
        npm: packages.npm.clone(),
    };
    packages.is_cached.then(|| RegistryCache::new(settings))
}

#[cfg(test)]
mod tests {
    use isol8_config::ConfigFile;

    use super::*;

    fn config(text: &str) -> Config {
        let file: ConfigFile = toml::from_str(text).unwrap();
        file.check("/s".into()).unwrap()
    }

    #[test]
    fn the_cache_of_packages_stays_until_it_is_another() {
        let directory = |config: &ActiveConfig| {
            let cache = config.package_cache();
            cache.map(|cache| cache.settings().directory.clone())
        };
        let before = ActiveConfig::new(config("")).unwrap();
        assert_eq!(directory(&before), Some("/s/packages".into()));
        let elsewhere = "stateDir = \"/other\"\n";
        let other = format!("{elsewhere}[packages]\ncacheDir = \"/c\"");
        let (after, needs_restart) = before.reload(config(&other)).unwrap();
        assert_eq!(needs_restart, ["stateDir"]);
        assert_eq!(directory(&after), Some("/c".into()));
        let (after, _) = before.reload(config(elsewhere)).unwrap();
        assert_eq!(directory(&after), Some("/s/packages".into()));
        let off = ActiveConfig::new(config("[packages]\ncache = false")).unwrap();
        assert_eq!(directory(&off), None);
    }
}
