/** What to type to reach a port, for each of the tools that people have. Pure. */

/**
 * Where a port is, for a machine that has opened this page as `host`: null while it has no
 * address, and for a port that dials out.
 */
export function portUrl(port, host) {
  if (!port.tcpPort) return null;
  const scheme = port.protocol === 'raw' ? 'socket' : 'rfc2217';
  return `${scheme}://${host}:${port.tcpPort}`;
}

/** [label, command] for each tool; a raw port has no settings, so no command says a baud rate. */
export function commandsFor(port, host) {
  const url = portUrl(port, host);
  if (!url) return [];
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
  const baud = port.baud || 115200;
  return [
    ...commands,
    ['pyserial terminal', `pyserial-miniterm ${url} ${baud}`],
    ['pyserial', `serial.serial_for_url("${url}", baudrate=${baud})`],
  ];
}
