/** Commands that reach a port, for each common tool. Pure. */

/**
 * Where a port is, for a machine that has opened this page as `host`: null while it has no
 * address, and for a port that dials out.
 */
export function portUrl(port, host) {
  if (!port.tcpPort) return null;
  if (port.tls) return `gateway://${host}:${port.tcpPort}`;
  const scheme = port.protocol === 'raw' ? 'socket' : 'rfc2217';
  return `${scheme}://${host}:${port.tcpPort}`;
}

/** [label, command] for each tool; a raw port has no settings, so no command says a baud rate. */
export function commandsFor(port, host) {
  const url = portUrl(port, host);
  if (!url) return [];
  if (port.tls) return tlsCommands(port, url, host);
  const commands = [
    ['esptool', `esptool --port ${url} write-flash 0x10000 app.bin`],
    ['idf.py', `idf.py --port ${url} flash monitor`],
    ['PlatformIO upload', `pio run --target upload --upload-port ${url}`],
    ['PlatformIO monitor', `pio device monitor --port ${url}`],
  ];
  if (port.protocol === 'raw') {
    return [
      ...commands,
      ['pyserial', `python -c "import serial; print(serial.serial_for_url('${url}', timeout=5).read(999))"`],
      ['netcat', `nc ${host} ${port.tcpPort}`],
    ];
  }
  const baudrate = port.baudrate || 115200;
  return [
    ...commands,
    ['pyserial terminal', `pyserial-miniterm ${url} ${baudrate}`],
    ['pyserial', `serial.serial_for_url("${url}", baudrate=${baudrate})`],
  ];
}

/** The tools speak no TLS: pyserial's do with the gateway's own client, for all others socat does. */
function tlsCommands(port, url, host) {
  const socat = [
    'socat, for other tools',
    `socat TCP-LISTEN:${port.tcpPort},bind=127.0.0.1,reuseaddr,fork OPENSSL:${host}:${port.tcpPort},cafile=ca.pem`,
  ];
  if (port.protocol === 'raw') return [socat];
  return [['esptool', `esptool --port "${url}?ca=ca.pem" write-flash 0x10000 app.bin`], socat];
}
